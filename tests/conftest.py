import videoattn as videoattn  # before any test module's `import torchvision`: see _compat.py

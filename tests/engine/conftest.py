import torch
import torchvision as torchvision  # first: the import finder of `_compat` then steps aside

torch.set_num_threads(1)

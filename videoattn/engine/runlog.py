"""Reports a training run: progress on the terminal, metrics to trackers."""

from collections.abc import Mapping, Sequence

from videoattn.engine.evaluate import Evaluation
from videoattn.engine.failures import SKIPPED, keep_failures
from videoattn.engine.objective import fraction
from videoattn.engine.plan import EpochPlan
from videoattn.engine.progress import Clock, Display
from videoattn.engine.state import RunSettings, Sums, TrainState
from videoattn.engine.step import OptimSettings, StepResult
from videoattn.engine.trackers import JsonLines, Kind, TensorBoard, Tracker


class RunLog:
    """Prints progress and writes metrics on the main process; does nothing on the others."""

    def __init__(
        self,
        run: RunSettings,
        state: TrainState,
        *,
        plan: EpochPlan,
        settings: OptimSettings,
        enabled: bool,
    ) -> None:
        self.run, self.plan, self.settings = run, plan, settings
        self.num_steps = plan.num_epochs * state.steps_per_epoch
        self.display = Display(enabled=enabled)
        self.clock = Clock(steps_left=self.num_steps - state.step_of_run)
        self.trackers: list[Tracker] = []
        if enabled:
            step = state.step_of_run
            metrics = run.folder / "metrics.jsonl"
            keep_failures(run.folder / SKIPPED, state.failed)
            self.trackers = [
                JsonLines(metrics, resumed_at=step, validated=state.step == 0),
                TensorBoard(run.folder / "tensorboard", resumed_at=step),
                *run.trackers,
            ]

    def __enter__(self) -> "RunLog":
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(*error)
        for tracker in self.trackers:
            tracker.close()

    def lines(self, texts: Sequence[str]) -> None:
        """Prints permanent lines above the live line."""
        for text in texts:
            self.display.line(text)

    def step(self, state: TrainState, result: StepResult, *, waited: float) -> None:
        """Reports a completed step; `waited` is the time spent waiting for data, in seconds."""
        self.clock.step(clips=result.num_clips, waited=waited)
        self.display.update(self.progress_line(state), done=state.step_of_run, total=self.num_steps)
        is_last = state.step == state.steps_per_epoch
        if state.step_of_run % self.run.log_every_steps == 0 or is_last:
            self._write("train", state.step_of_run, self._train_record(state, result))
            state.since_log = Sums()

    def progress_line(self, state: TrainState) -> str:
        """Returns a line: position in the run, losses and metric of the epoch, speed, time left."""
        sums = state.of_epoch
        losses = {"loss": sums.loss} | sums.auxiliary_losses
        skipped = f"skipped {state.num_skipped}  " if state.num_skipped else ""
        return (
            f"epoch {state.epoch + 1}/{self.plan.num_epochs}  "
            f"step {state.step}/{state.steps_per_epoch}  "
            + "".join(f"{name} {fraction(x, sums.num_clips):.4f}  " for name, x in losses.items())
            + f"{self.settings.objective.progress} "
            f"{100 * fraction(sums.correct, sums.num_clips):.1f} %  {skipped}"
            f"{self.clock.clips_per_second:.1f} clips/s  data {100 * self.clock.wait_share:.0f} %  "
            f"left {self.clock.time_left}"
        )

    def validation(self, state: TrainState, evaluation: Evaluation) -> None:
        """Reports a validation, which follows the last step of an epoch."""
        self.display.line(f"epoch {state.epoch + 1}  {evaluation.describe()}")
        name = next(iter(evaluation.video_metrics))
        record = {
            "epoch": state.epoch + 1,
            "loss": evaluation.loss,
            **{f"video_{key}": value for key, value in evaluation.video_metrics.items()},
            **{f"clip_{key}": value for key, value in evaluation.clip_metrics.items()},
            "videos": evaluation.num_labeled,
            "views": evaluation.num_views,
            "failed": evaluation.num_failed,
        }
        for key, part in evaluation.parts.items():
            record[f"video_{name}_{key}"] = part.video_metrics[name]
        self._write("validation", state.step_of_run, record)

    def _train_record(self, state: TrainState, result: StepResult) -> dict[str, int | float]:
        sums = state.since_log
        record: dict[str, int | float] = {
            "epoch": state.epoch + 1,
            "loss": fraction(sums.loss, sums.num_clips),
            self.settings.objective.progress: fraction(sums.correct, sums.num_clips),
            "lr": self.settings.lr_at(state.step_of_run - 1),
            "gradient_norm": result.gradient_norm,
            "clips_per_second": self.clock.clips_per_second,
            "wait_share": self.clock.wait_share,
            "seen": state.num_seen,
            "skipped": state.num_skipped,
            "failed": len(state.failed),
        }
        if len(self.plan.stage_epochs) > 1:
            record["stage"] = self.plan.phase(state.epoch).stage + 1
        if self.settings.auxiliary is not None:
            record["auxiliary_loss"] = fraction(sums.auxiliary, sums.num_clips)
            for name, value in sums.auxiliary_losses.items():
                record[name] = fraction(value, sums.num_clips)
        return record

    def _write(self, kind: Kind, step: int, record: Mapping[str, int | float]) -> None:
        # NaN is not JSON.
        plain = {key: None if value != value else value for key, value in record.items()}
        for tracker in self.trackers:
            tracker.write(kind, step, plain)

from strive.experiments.training import TrainingView
from strive.train.loop import StepReport
from strive.train.run_folder import Best

METRICS = {
    "reward/mean": 1.5,
    "reward/accuracy": 0.52,
    "reward/format": 0.98,
    "group/zero_std_fraction": 0.25,
    "completion/length_mean": 312.4,
    "completion/truncated_fraction": 0.031,
    "loss/kl": 0.0123,
    "optim/grad_norm": 1.234,
    "time/step": 61.5,
    "time/data": 0.615,
    "time/rollout": 30.75,
    "time/logprob": 12.3,
    "time/backward": 17.22,
    "memory/peak_bytes": 75 * 2**30,
}


class Screen:
    def __init__(self):
        self.done, self.began, self.notes = 0, None, ()

    def advance(self, count=1):
        self.done += count

    def note(self, *texts):
        self.notes = texts

    def begin(self, done, seconds):
        self.done, self.began = done, (done, seconds)


def report(step, *, reward=1.5, held_out=None, best=None):
    return StepReport(step, 150, METRICS | {"reward/mean": reward}, held_out, best)


def test_the_figures_of_a_step():
    screen = Screen()
    TrainingView(screen).show(report(1))
    assert screen.notes == (
        "reward 1.50 (accuracy 0.52, format 0.98); zero-std 25%",
        "312 tokens a completion, 3% cut; KL 0.0123, gradient norm 1.234",
        "step 61.5 s: data 1%, rollout 50%, log-probs 20%, backward 28%; peak 75.0 GiB",
    )
    assert max(len(note) for note in screen.notes) <= 80


def test_a_resumed_run_counts_from_where_it_was_and_knows_the_best():
    screen = Screen()
    view = TrainingView(screen)
    best = Best(90, "accuracy", 0.601)
    view.show(report(101, best=best))
    # The first step took 61.5 s; what came before it is no pace of this call.
    assert screen.began == (100, 61.5) and screen.done == 101
    assert screen.notes[3] == "best held-out 60.1% after step 90"
    view.show(report(102, reward=2.5, held_out={"accuracy": 0.5}, best=best))
    assert screen.done == 102
    # (1.5 + 2.5) / 2
    assert "reward 2.50 (accuracy 0.52, format 0.98), 2.00 over 2 steps" in screen.notes[0]
    evaluated = "held-out 50.0% after step 102; best held-out 60.1% after step 90"
    assert screen.notes[3] == evaluated
    view.show(report(103, best=best))
    assert screen.notes[3] == evaluated


def test_numbers_without_bounds_take_no_more_room():
    screen = Screen()
    view = TrainingView(screen)
    view.show(report(1, reward=float("nan")))
    assert screen.notes[0].startswith("reward nan (accuracy 0.52")
    huge = METRICS | {"reward/mean": 1e149, "reward/accuracy": -1e149, "optim/grad_norm": 1e30}
    view.show(StepReport(2, 150, huge, None, None))
    assert screen.notes[0].startswith("reward 1e+149 (accuracy -1e+149, format 0.98); zero-std")
    view.show(report(3, reward=float("nan")))
    assert "reward nan (accuracy 0.52, format 0.98), 1e+149 over" not in screen.notes[0]
    assert all(len(note) <= 80 for note in screen.notes)

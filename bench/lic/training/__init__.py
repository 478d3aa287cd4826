"""Training: `Config` says what is run, `Training` takes its steps, `run` takes it to its end.

training = Training(Config(model="elic", optimizer="soap_fast", ...), images)
summary = run(training, Path("runs/elic"))
model, config = load_model("runs/elic")
"""

from bench.lic.training.config import Config
from bench.lic.training.history import WARMUP, History, Quality, evaluate, summarise
from bench.lic.training.processes import ALONE, Interrupted, Processes, say
from bench.lic.training.runs import load_model, run
from bench.lic.training.training import Training

__all__ = [
    "ALONE",
    "WARMUP",
    "Config",
    "History",
    "Interrupted",
    "Processes",
    "Quality",
    "Training",
    "evaluate",
    "load_model",
    "run",
    "say",
    "summarise",
]

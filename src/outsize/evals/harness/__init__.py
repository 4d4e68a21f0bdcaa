"""outsize as a backend of lm-evaluation-harness: ``lm_eval.simple_evaluate(model=OutsizeLM("facebook/opt-30b"))``.

Importing this module registers it there under the name ``outsize``: ``lm_eval.simple_evaluate(model="outsize",
model_args="pretrained=facebook/opt-30b,ram=48GiB")``. It needs lm_eval (the extra ``eval``).
"""

from outsize.evals.harness.backend import OutsizeLM

__all__ = ["OutsizeLM"]

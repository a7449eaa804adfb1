"""The deciding half: propose, check, commit, judge, record. Never runs model-written code in its own process."""

import os

# Without git on PATH, GitPython would refuse to be imported, and `overnight doctor` could not say what is missing.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

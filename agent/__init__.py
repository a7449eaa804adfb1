"""The deciding half: propose, check, commit, judge, record. Never runs model-written code in its own process."""

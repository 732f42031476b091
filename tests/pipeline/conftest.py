"""What the pipeline's tests share."""

from hypothesis import settings

# A machine that is busy with other things makes single examples slow; that says nothing about the code.
settings.register_profile("pipeline", deadline=None)
settings.load_profile("pipeline")

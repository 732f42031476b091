"""The daemon: makes every part, hands it to the parts that need it, and serves until it is told to stop."""

from overlayd.daemon.declaring import declare_streams
from overlayd.daemon.interpreter import tune_interpreter
from overlayd.daemon.parts import Parts
from overlayd.daemon.serving import serve, serve_edge

__all__ = ["Parts", "declare_streams", "serve", "serve_edge", "tune_interpreter"]

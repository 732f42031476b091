"""`python -m overlayd`."""

from overlayd.cli import main

main()

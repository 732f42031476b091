"""Copies of a log beside it: how they are made while it is written to, described, remembered, and put back."""

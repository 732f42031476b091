"""People: what is kept about them, found again, told to them and erased (docs/privacy.md)."""

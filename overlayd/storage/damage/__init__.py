"""A damaged log: what is still in its file, found without trusting the file's structure, and made a whole database again."""

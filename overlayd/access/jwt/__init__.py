"""JSON Web Tokens: other servers say who somebody is, and the node believes those that the settings name."""

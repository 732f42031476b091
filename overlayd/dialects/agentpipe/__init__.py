"""AgentPipe: the server that its command-line client streams conversations to, and that its page reads them from."""

"""Other machines, and this one like them: SSH, tmux, facts, files."""

"""Man pages, made of the pages of `epochfs help` and of what the commands say of themselves."""

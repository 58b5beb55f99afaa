"""What every command needs around the model: files and folders, the terminal, checkpoints, where numbers come from."""

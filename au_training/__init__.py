"""Fine-tuning: data, starting point, batches, loss, trainer and recovery. train_sft.py runs `command.py`."""

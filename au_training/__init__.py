"""How AU-LLaVA is fine-tuned: options, what a training starts from, the trainer. train_sft.py puts them together."""

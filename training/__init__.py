"""Fine-tuning: BERT and LoRA from scratch, data sets, the training loop, and the certified merge."""

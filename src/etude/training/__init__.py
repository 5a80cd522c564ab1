"""Stage 2: fine-tuning through Lightning, driven by the timeline."""

"""Tasks of decoders: instructions (Vicuna-Eval, MMLU), mathematics and commonsense reasoning."""

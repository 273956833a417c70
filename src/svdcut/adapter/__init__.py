"""PEFT's LoRA adapters: what one changes of a base, and how a truncated update becomes one.

It computes no update. All but `factors` and `arrange` import no torch. What is said of PEFT
was read in version 0.21.2 and tried there, with transformers 5.24.
"""

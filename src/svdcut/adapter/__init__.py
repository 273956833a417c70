"""PEFT's LoRA adapters, in two ways around one map of names, `memory`.

Reading, an adapter as the fine-tuned side of its base: `reading` opens it; `peft_config` and
`tensors` read its two files; `parameters` finds what each pair of factors is for;
`application` says what becomes of each tensor of base, `tying` which of these are copies,
and `model_config` what the config of the result is.

Writing, a truncated update as an adapter: `places` are where PEFT can put factors, `holding`
decides what holds each tensor and why one cannot be held, `layout` names every tensor and
writes the config with the names from `targets`, and `readers` says what vLLM and SGLang
make of it.

`numbers` reads and arranges the factors; the others import no torch. What is said of PEFT
was read in version 0.21.2 and tried there, with transformers 5.24.
"""

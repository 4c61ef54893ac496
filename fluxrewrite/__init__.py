"""fluxrewrite: NKI kernels into traced diffusers transformers, and what each call costs the compiler's fusion."""

"""llama.cpp over mmap: the page cache decides what stays."""

from __future__ import annotations

from measure import Clock, arguments, forced, prompt


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    options = arguments(__doc__).parse_args()
    import llama_cpp

    clock = Clock()
    model = llama_cpp.Llama(
        options.model,
        n_ctx=options.prompt_tokens + options.new_tokens + 16,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        use_mmap=True,
        verbose=False,
    )
    if options.warm:
        for made, _ in enumerate(model.generate(prompt(model.n_vocab()), temp=0.0, repeat_penalty=1.0), start=1):
            if made == 2:
                break
        model.reset()
    clock.ready()
    ids = prompt(model.n_vocab(), options.prompt_tokens)
    if options.forced:
        model.eval(ids)
        for token in forced(model.n_vocab(), options.new_tokens):
            clock.token(model.sample(temp=0.0, repeat_penalty=1.0))
            model.eval([token])
    else:
        for made, token in enumerate(model.generate(ids, temp=0.0, repeat_penalty=1.0), start=1):
            clock.token(token)
            if made == options.new_tokens:
                break
    print(clock.report("llama.cpp", f"llama-cpp-python {llama_cpp.__version__}"))


if __name__ == "__main__":
    main()

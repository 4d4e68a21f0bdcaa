"""llama.cpp over mmap: the page cache decides what stays."""

from __future__ import annotations

from measure import Clock, arguments, forced, prompt


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=512, help="tokens of a prompt at a time")
    parser.add_argument("--no-repack", action="store_true", help="use the file's pages as they are")
    options = parser.parse_args()
    import llama_cpp

    if options.no_repack:  # its copy of the weights in another layout: faster, and all of it in memory
        defaults = llama_cpp.llama_model_default_params

        def plain() -> llama_cpp.llama_model_params:
            parameters = defaults()
            parameters.use_extra_bufts = False
            return parameters

        llama_cpp.llama_model_default_params = llama_cpp.llama.llama_cpp.llama_model_default_params = plain
    clock = Clock()
    model = llama_cpp.Llama(
        options.model,
        n_ctx=options.prompt_tokens + options.new_tokens + 16,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_batch=options.batch,
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

"""Talk to a model: python examples/talk.py MODEL QUESTION

MODEL is a checkpoint folder, a .gguf, a .pte, or a hub id such as
HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import sys

from pocketlm import load


def main(path: str, question: str) -> None:
    with load(path) as model:
        print(model.chat(question, max_tokens=200))

        # the same, while it is being written; a list of messages carries a conversation on
        messages = [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": question},
        ]
        for piece in model.chat(messages, stream=True, max_tokens=60, temperature=0.7, seed=1):
            print(piece, end="", flush=True)
        print()

        # how surprised the model is by a text: natural log-probabilities, token by token
        scored = model.log_probs(question)
        mean = sum(log_prob for _, log_prob in scored) / max(1, len(scored))
        print(f"{len(scored)} tokens, {mean:.2f} nats each on average")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""What is being done, a line a step."""

_steps = ['starting']


def step(text):
    _steps.append(text)
    print(f'==> {text}', flush=True)


def note(text):
    """What a step has found."""
    print(f'    {text}', flush=True)


def doing():
    """The step that has begun last."""
    return _steps[-1]

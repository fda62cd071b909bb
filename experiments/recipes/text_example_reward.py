"""Reward of `experiments/text_example.py`: a module that imports nothing big.

Worker processes import it by its name.
"""


def reward(prompt, response, example):
  """1 for the answer and nothing else.

  Args:
    prompt: what the model saw.
    response: what it wrote.
    example: the line of the file.
  """
  del prompt
  return float(response.strip() == str(example["answer"]))

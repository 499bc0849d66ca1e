"""The text MDP: states are prompts, actions are programs, and the reward is the score of a program."""

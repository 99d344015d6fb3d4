"""The scripts that trained the models in `models/tiny`; each can be run again."""

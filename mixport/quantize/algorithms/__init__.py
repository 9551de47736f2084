"""Ways to choose: each takes what was prepared and gives an Assignment. Their names:
mixport.records.choices.algorithms."""

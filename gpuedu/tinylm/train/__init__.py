"""How the two models were made: ``python -m gpuedu.tinylm.train FOLDER``, seeded from end to end."""

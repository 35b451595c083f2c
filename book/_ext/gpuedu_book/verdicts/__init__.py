"""Numbers in the verdicts: a module a technique, in it a function a claim."""

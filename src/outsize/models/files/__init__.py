"""The files of a model, read as data: nothing in them is run or trusted."""

"""Records of labelled faces: storage, folds, mixing for training, conversion between formats."""

"""The judge of accuracy: data sets that are made here, networks, one recipe of training, and the methods compared."""

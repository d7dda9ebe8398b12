"""What ``trajgen new`` writes: a small working component of each kind, to be changed into what one wants."""

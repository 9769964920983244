/* What the user asked pyxis for, for whatever else is linked into the test plugin. */
#ifndef SPANK_PYXIS_OPTIONS_H
#define SPANK_PYXIS_OPTIONS_H

/*
 * The value given for the option NAME ("container-image", without dashes), "" for an option
 * that takes none, NULL if it was not given. Valid in the program that asks from
 * slurm_spank_init_post_opt on until slurm_spank_exit.
 */
const char *pyxis_option(const char *name);

#endif

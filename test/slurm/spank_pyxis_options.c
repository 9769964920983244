/*
 * A SPANK plugin that knows pyxis' command line and nothing else.
 *
 * Under the name `pyxis` it registers the options pyxis registers, in the contexts pyxis
 * registers them in, so that the Prolog of a test cluster sees a job exactly as it would
 * with pyxis: SPANK__SLURM_SPANK_OPTION_pyxis_container_image=... and so on. No container
 * is started. A second file linked into the same plugin may do that: it defines the later
 * SPANK hooks (slurm_spank_user_init, ...) and asks pyxis_option() for what was given.
 *
 * Built by cluster.ts: cc -shared -fPIC -o spank_pyxis.so spank_pyxis_options.c
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <slurm/spank.h>

#include "spank_pyxis_options.h"

SPANK_PLUGIN(pyxis, 1)

/* The value of an option that takes none. */
static const char GIVEN[] = "";

struct option_row {
	char *name;
	char *argument; /* NULL: the option takes no argument */
	char *usage;
	const char *opposite; /* the option that this one revokes, or NULL */
	char *value; /* what was given, or NULL */
};

static struct option_row option_rows[] = {
	{ "container-image", "IMAGE", "container image, a URI or a squashfs path", NULL, NULL },
	{ "container-mounts", "SOURCE:TARGET[:FLAGS][,...]", "bind mounts in the container", NULL, NULL },
	{ "container-workdir", "PATH", "working directory in the container", NULL, NULL },
	{ "container-name", "NAME", "keep the container under this name", NULL, NULL },
	{ "container-save", "PATH", "save the container to a squashfs file", NULL, NULL },
	{ "container-mount-home", NULL, "mount the home directory", "no-container-mount-home", NULL },
	{ "no-container-mount-home", NULL, "do not mount the home directory", "container-mount-home", NULL },
	{ "container-remap-root", NULL, "be root in the container", "no-container-remap-root", NULL },
	{ "no-container-remap-root", NULL, "do not be root in the container", "container-remap-root", NULL },
	{ "container-entrypoint", NULL, "run the image's entrypoint", "no-container-entrypoint", NULL },
	{ "no-container-entrypoint", NULL, "do not run the image's entrypoint", "container-entrypoint", NULL },
	{ "container-entrypoint-log", NULL, "show the entrypoint's output", NULL, NULL },
	{ "container-writable", NULL, "make the root filesystem writable", "container-readonly", NULL },
	{ "container-readonly", NULL, "make the root filesystem read-only", "container-writable", NULL },
	{ "container-env", "NAME[,...]", "host variables that win over the image's", NULL, NULL },
	{ "container-unshare", "NAMESPACE[,...]", "further namespaces of the container's own", NULL, NULL },
};

enum { OPTION_COUNT = sizeof(option_rows) / sizeof(option_rows[0]) };

static struct option_row *find_row(const char *name)
{
	for (int index = 0; index < OPTION_COUNT; index++)
		if (strcmp(option_rows[index].name, name) == 0)
			return &option_rows[index];
	return NULL;
}

const char *pyxis_option(const char *name)
{
	const struct option_row *row = find_row(name);

	return row == NULL ? NULL : row->value;
}

static bool is_one_of(const char *words, const char *word, size_t length)
{
	for (; *words != '\0'; words += strcspn(words, " ") + 1)
		if (strcspn(words, " ") == length && strncmp(words, word, length) == 0)
			return true;
	return false;
}

/* Whether each item of a comma-separated list is there, and one of the words, if any are given. */
static bool is_list(const char *value, const char *words)
{
	for (;; value++) {
		const size_t length = strcspn(value, ",");

		if (length == 0 || (words != NULL && !is_one_of(words, value, length)))
			return false;
		value += length;
		if (*value == '\0')
			return true;
	}
}

/* What pyxis refuses when the job is submitted, so that no node sees it. */
static bool is_acceptable(const char *name, const char *value)
{
	if (strcmp(name, "container-name") == 0) {
		const char *colon = strchr(value, ':');
		const char *flag = colon == NULL ? "" : colon + 1;

		return colon != value && (*flag == '\0' || is_one_of("auto create exec no_exec ", flag, strlen(flag)));
	}
	if (strcmp(name, "container-save") == 0)
		return value[strlen(value) - 1] != '/';
	if (strcmp(name, "container-unshare") == 0)
		return is_list(value, "net ipc uts ");
	if (strcmp(name, "container-env") == 0)
		return is_list(value, NULL);
	return true;
}

/*
 * Slurm's callback for each option it meets; index is its place in option_rows. Slurm may
 * report one option twice (command line, then environment), which is no error as long as
 * both agree; two different values are, as in pyxis.
 */
static int take_option(int index, const char *argument, int remote)
{
	struct option_row *row;
	const char *value = GIVEN;

	(void)remote;
	if (index < 0 || index >= OPTION_COUNT)
		return -1;
	row = &option_rows[index];

	if (row->argument != NULL) {
		if (argument == NULL || *argument == '\0') {
			slurm_error("pyxis: --%s: argument required", row->name);
			return -1;
		}
		if (!is_acceptable(row->name, argument)) {
			slurm_error("pyxis: --%s: cannot use \"%s\"", row->name, argument);
			return -1;
		}
		value = argument;
	}
	if (row->value != NULL) {
		if (strcmp(row->value, value) == 0)
			return 0;
		slurm_error("pyxis: --%s given as \"%s\" and as \"%s\"", row->name, row->value, value);
		return -1;
	}
	if (row->opposite != NULL) {
		const struct option_row *opposite = find_row(row->opposite);

		if (opposite != NULL && opposite->value != NULL) {
			slurm_error("pyxis: --%s and --%s exclude each other", row->name, row->opposite);
			return -1;
		}
	}
	row->value = strdup(value);
	return row->value == NULL ? -1 : 0;
}

/* Called in each program that loads the plugin: srun, sbatch, salloc, slurmd, slurmstepd. */
int slurm_spank_init(spank_t spank, int argument_count, char **arguments)
{
	(void)argument_count;
	(void)arguments;

	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
	case S_CTX_REMOTE:
		break;
	default:
		return 0;
	}

	for (int index = 0; index < OPTION_COUNT; index++) {
		struct spank_option option = {
			.name = option_rows[index].name,
			.arginfo = option_rows[index].argument,
			.usage = option_rows[index].usage,
			.has_arg = option_rows[index].argument != NULL,
			.val = index,
			.cb = take_option,
		};
		spank_err_t result = spank_option_register(spank, &option);

		if (result != ESPANK_SUCCESS) {
			slurm_error("pyxis: cannot register --%s: %s", option.name, spank_strerror(result));
			return -1;
		}
	}
	return 0;
}

int slurm_spank_exit(spank_t spank, int argument_count, char **arguments)
{
	(void)spank;
	(void)argument_count;
	(void)arguments;

	for (int index = 0; index < OPTION_COUNT; index++) {
		free(option_rows[index].value);
		option_rows[index].value = NULL;
	}
	return 0;
}

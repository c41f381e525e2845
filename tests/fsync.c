/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * An fsync as a slow or failing disk has it. The folder that FSYNC_CONTROL names has two files: `ms`, how
 * long each takes, and `fail`, how many fail. Each call leaves a line in `calls`: the name of its thread.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long
number_in(const char *name)
{
	char path[4096];
	long number = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", getenv("FSYNC_CONTROL"), name);
	file = fopen(path, "r");
	if (file != NULL) {
		if (fscanf(file, "%ld", &number) != 1) {
			number = 0;
		}
		fclose(file);
	}
	return number;
}

int
fsync(int fd)
{
	char path[4096], thread[16] = "";
	long ms, fail;
	struct timespec pause;
	FILE *file;

	if (getenv("FSYNC_CONTROL") == NULL) {
		return syscall(SYS_fsync, fd);
	}
	pthread_getname_np(pthread_self(), thread, sizeof(thread));
	snprintf(path, sizeof(path), "%s/calls", getenv("FSYNC_CONTROL"));
	file = fopen(path, "a");
	if (file != NULL) {
		fprintf(file, "%s\n", thread);
		fclose(file);
	}
	ms = number_in("ms");
	pause.tv_sec = ms / 1000;
	pause.tv_nsec = ms % 1000 * 1000000;
	nanosleep(&pause, NULL);
	fail = number_in("fail");
	if (fail > 0) {
		snprintf(path, sizeof(path), "%s/fail", getenv("FSYNC_CONTROL"));
		file = fopen(path, "w");
		if (file != NULL) {
			fprintf(file, "%ld\n", fail - 1);
			fclose(file);
		}
		errno = EIO;
		return -1;
	}
	return syscall(SYS_fsync, fd);
}

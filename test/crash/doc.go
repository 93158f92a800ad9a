// Package crash kills the program, cuts its disk off, fills it and damages its
// files, and checks what is left against what had been promised.
package crash

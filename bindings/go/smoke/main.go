// Smoke loads a model folder through the C interface and prints eight greedy tokens: smoke FOLDER ID...
//
// Build with CGO_LDFLAGS=-L<folder of libsquire.so>; run where libsquire.so.0 is found.
package main

/*
#cgo CFLAGS: -I${SRCDIR}/../../../include
#cgo LDFLAGS: -lsquire
#include <stdlib.h>
#include <string.h>
#include "squire.h"
*/
import "C"

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"
)

// check ends the program if a call failed.
func check(status C.squire_status, err *C.squire_error) {
	if status < 0 {
		fmt.Fprintln(os.Stderr, C.GoString(C.squire_error_message(err, nil)))
		os.Exit(1)
	}
}

func main() {
	folder := C.CString(os.Args[1])
	defer C.free(unsafe.Pointer(folder))
	var prompt []C.int32_t
	for _, argument := range os.Args[2:] {
		id, err := strconv.Atoi(argument)
		if err != nil {
			panic(err)
		}
		prompt = append(prompt, C.int32_t(id))
	}
	var err *C.squire_error

	var engineOptions C.squire_engine_options
	C.squire_engine_options_init(&engineOptions, C.size_t(unsafe.Sizeof(engineOptions)), C.SQUIRE_ABI)
	engineOptions.compute = C.SQUIRE_COMPUTE_F32
	var engine *C.squire_engine
	check(C.squire_engine_create(&engineOptions, &engine, &err), err)
	defer C.squire_engine_release(engine)

	var modelOptions C.squire_model_options
	C.squire_model_options_init(&modelOptions, C.size_t(unsafe.Sizeof(modelOptions)))
	modelOptions.path, modelOptions.path_len = folder, C.strlen(folder)
	var model *C.squire_model
	check(C.squire_model_load(engine, &modelOptions, nil, &model, &err), err)
	defer C.squire_model_release(model)

	var session *C.squire_session
	check(C.squire_session_create(model, &session, &err), err)
	defer C.squire_session_release(session)
	check(C.squire_session_sync(session, &prompt[0], C.size_t(len(prompt)), nil, &err), err)

	var genOptions C.squire_gen_options
	C.squire_gen_options_init(&genOptions, C.size_t(unsafe.Sizeof(genOptions)))
	genOptions.temperature, genOptions.max_tokens = 0, 8
	var generation *C.squire_gen
	check(C.squire_gen_start(session, &genOptions, &generation, &err), err)
	defer C.squire_gen_release(generation)

	var event C.squire_event
	C.squire_event_init(&event, C.size_t(unsafe.Sizeof(event)))
	var ids []any
	for {
		status := C.squire_gen_next(generation, -1, &event, &err)
		check(status, err)
		if status == C.SQUIRE_END {
			break
		}
		for _, id := range unsafe.Slice(event.ids, event.ids_len) {
			ids = append(ids, id)
		}
	}
	fmt.Println(ids...)
}

/*
 * tpvit: runs quantized Vision Transformers in integers.
 *
 *     tpvit_model *model;
 *     tpvit_session *session;
 *     tpvit_model_open("vit.tpv", &model);
 *     tpvit_session_new(model, 1, NULL, &session);
 *     tpvit_session_run(session, pixels, height * width * 3, logits, classes);
 *
 * Each of these returns TPVIT_STATUS_OK, or a code and leaves a text for people
 * in tpvit_last_error. bindings/c/example.c is a whole program.
 *
 * Pixels are what preprocessing leaves, u8 and not normalised: the model's mean
 * and deviation are in its weights. Decode the picture to RGB; resize it as
 * tpvit_model_shorter_side and tpvit_model_interpolation say; crop height x
 * width from the centre. Another filter gives another answer now and then.
 *
 * Threads: a tpvit_model may be shared. A tpvit_session is used by one thread
 * at a time, so several threads make one each, of the same model.
 *
 * A NULL where none is allowed, and a buffer that is too short by its length,
 * are errors and nothing is touched. What cannot be checked is the caller's
 * promise: that a pointer that is not NULL points to what the function says.
 * No panic leaves the library, but out of memory ends the process.
 *
 * Made by cbindgen from bindings/c/src; do not edit.
 */


#ifndef TPVIT_H
#define TPVIT_H

#include <stddef.h>
#include <stdint.h>

/**
 * What a call returns. Codes keep their numbers in all versions.
 */
typedef enum {
  /**
   * It did what it is for.
   */
  TPVIT_STATUS_OK = 0,
  /**
   * An argument that no call can have: a NULL, a name that does not exist,
   * a number out of range.
   */
  TPVIT_STATUS_ARGUMENT = 1,
  /**
   * A buffer has the wrong length; the text says which and what is needed.
   */
  TPVIT_STATUS_LENGTH = 2,
  /**
   * The system does not give the file's bytes.
   */
  TPVIT_STATUS_IO = 3,
  /**
   * The file holds no model that can be run.
   */
  TPVIT_STATUS_MODEL = 4,
  /**
   * This machine lacks the instruction set, or does not start the threads.
   */
  TPVIT_STATUS_MACHINE = 5,
  /**
   * A mistake of this library, caught before it reached the caller. Free the
   * objects of the call; all others stay usable.
   */
  TPVIT_STATUS_INTERNAL = 6,
} tpvit_status;

/**
 * A model file, read and checked but for its tensors. It never changes: any
 * number of threads may use it at once.
 */
typedef struct tpvit_model tpvit_model;

/**
 * A model ready to run, with weights and memory of its own. One thread at a
 * time may use it; which one does not matter.
 */
typedef struct tpvit_session tpvit_session;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, as "1.2.3". Valid for ever.
 */
const char *tpvit_version(void);

/**
 * Why the last call of this thread that failed did so: one line of UTF-8
 * without a full stop, empty if none has failed. Never NULL. A call that
 * succeeds leaves it as it is. Valid until the next call of this thread that
 * fails, or the thread's end.
 */
const char *tpvit_last_error(void);

/**
 * Opens the file at `path` and reads and checks all but its tensors, which
 * tpvit_session_new reads one at a time. The file stays open until the model
 * is freed.
 *
 * path: a text that ends with NUL, read during the call. On Windows UTF-8.
 *
 * model: receives the model, to be freed with tpvit_model_free, or NULL if
 * the call fails.
 *
 * Fails with TPVIT_STATUS_ARGUMENT, TPVIT_STATUS_IO or TPVIT_STATUS_MODEL.
 *
 * # Safety
 * The pointers are what is said above, or NULL.
 */
tpvit_status tpvit_model_open(const char *path, tpvit_model **model);

/**
 * Makes a model of the bytes of a file, which are copied. Reads and checks all
 * but the tensors, which tpvit_session_new does.
 *
 * bytes: `len` bytes, read during the call. They need no alignment.
 *
 * model: receives the model, to be freed with tpvit_model_free, or NULL if
 * the call fails.
 *
 * Fails with TPVIT_STATUS_ARGUMENT or TPVIT_STATUS_MODEL.
 *
 * # Safety
 * The pointers are what is said above, or NULL.
 */
tpvit_status tpvit_model_from_memory(const uint8_t *bytes,
                                     size_t len,
                                     tpvit_model **model);

/**
 * Frees a model. Its sessions stay usable; its labels do not. NULL is allowed.
 *
 * # Safety
 * `model` came from this library, was not freed before, and no other thread
 * is using it.
 */
void tpvit_model_free(tpvit_model *model);

/**
 * Height of the picture in pixels; 0 if `model` is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_height(const tpvit_model *model);

/**
 * Width of the picture in pixels; 0 if `model` is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_width(const tpvit_model *model);

/**
 * How many pixels the shorter side of a picture is resized to, before the
 * model's height and width are cropped from its centre. 0 if the whole picture
 * is resized to the model's height and width instead, or `model` is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_shorter_side(const tpvit_model *model);

/**
 * The filter of that resize, antialiased as Pillow's: "bicubic" or "bilinear".
 * NULL if `model` is NULL. Valid for ever.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
const char *tpvit_model_interpolation(const tpvit_model *model);

/**
 * Rows of the result: 1 of a classifier, else the tokens of the features.
 * 0 if `model` is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_output_rows(const tpvit_model *model);

/**
 * Columns of the result: the classes, or the channels of the features. 0 if
 * `model` is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_output_cols(const tpvit_model *model);

/**
 * The number of classes; 0 of a model whose result is features, or if `model`
 * is NULL.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
size_t tpvit_model_classes(const tpvit_model *model);

/**
 * What class `number` is called, UTF-8. NULL if the file has no labels,
 * there is no such class, or `model` is NULL. Valid until the model is freed.
 *
 * # Safety
 * `model` is a model that was not freed, or NULL.
 */
const char *tpvit_model_label(const tpvit_model *model, size_t number);

/**
 * Reads and checks the tensors, and makes the model ready to run: weights in
 * the order of the instruction set, and all memory that runs need.
 *
 * model: used during the call only. Several threads may make sessions of one
 * model at once.
 *
 * threads: 1 to 1024. All but the caller's wait between pictures and end with
 * the session.
 *
 * isa: NULL takes the best instruction set of this CPU. Otherwise a text that
 * ends with NUL, read during the call: "portable", "avx2", "avxvnni",
 * "avx512vnni", "neon", "dotprod" or "i8mm". The result has the same bits with
 * each, and with any number of threads.
 *
 * session: receives the session, to be freed with tpvit_session_free, or NULL
 * if the call fails.
 *
 * Fails with TPVIT_STATUS_ARGUMENT, TPVIT_STATUS_IO, TPVIT_STATUS_MODEL or
 * TPVIT_STATUS_MACHINE.
 *
 * # Safety
 * The pointers are what is said above, or NULL.
 */
tpvit_status tpvit_session_new(const tpvit_model *model,
                               size_t threads,
                               const char *isa,
                               tpvit_session **session);

/**
 * Ends a session's threads and frees it. NULL is allowed.
 *
 * # Safety
 * `session` came from this library, was not freed before, and no other thread
 * is using it.
 */
void tpvit_session_free(tpvit_session *session);

/**
 * The instruction set in use. NULL if `session` is NULL. Valid until the
 * session is freed.
 *
 * # Safety
 * `session` is a session that was not freed, or NULL.
 */
const char *tpvit_session_isa(const tpvit_session *session);

/**
 * Bytes that the session has allocated for weights, constants and runs. 0 if
 * `session` is NULL.
 *
 * # Safety
 * `session` is a session that was not freed, or NULL.
 */
size_t tpvit_session_bytes(const tpvit_session *session);

/**
 * Runs the model on one picture.
 *
 * pixels: `pixels_len` bytes, exactly height * width * 3, read during the
 * call: row after row, each pixel red, green, blue.
 *
 * output: room for `output_len` floats, at least rows * cols of the result,
 * which is written row after row: a classifier's logits, one for each class.
 * What lies beyond is left as it is. If the call fails nothing is written.
 *
 * Fails with TPVIT_STATUS_ARGUMENT or TPVIT_STATUS_LENGTH.
 *
 * # Safety
 * The pointers are what is said above, or NULL; the buffers do not overlap,
 * and no other thread is using the session or writing to them.
 */
tpvit_status tpvit_session_run(tpvit_session *session,
                               const uint8_t *pixels,
                               size_t pixels_len,
                               float *output,
                               size_t output_len);

/**
 * Turns logits into probabilities, in place: exp(x) / sum of exp, of `len`
 * floats. They must be numbers; others give values without a meaning.
 *
 * Fails with TPVIT_STATUS_ARGUMENT.
 *
 * # Safety
 * `logits` points to `len` floats that no other thread is using, or is NULL.
 */
tpvit_status tpvit_softmax(float *logits, size_t len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TPVIT_H */

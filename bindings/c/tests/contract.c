/*
 * Holds the library to each sentence of tpvit.h that can be tested.
 *
 *     contract FOLDER      with the files of bindings/common/examples/golden_run.rs
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tpvit.h"

enum { SIDE = 32, PIXELS = SIDE * SIDE * 3, CLASSES = 11, THREADS = 8, RUNS = 20 };

static int checks;

/* Ends the program with the place and the last error if `fact` is not true. */
#define CHECK(fact)                                                                      \
  do {                                                                                   \
    if (!(fact)) {                                                                       \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #fact,          \
              tpvit_last_error());                                                       \
      exit(1);                                                                           \
    }                                                                                    \
    __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED);                                    \
  } while (0)

/* A failure with this code, and a text that has `part` in it. */
#define FAILS(call, code, part)                                                          \
  do {                                                                                   \
    CHECK((call) == (code));                                                             \
    CHECK(strstr(tpvit_last_error(), (part)) != NULL);                                   \
  } while (0)

static char model_path[4096];
static uint8_t pixels[PIXELS];
static float expected[CLASSES];

static void *read_file(const char *folder, const char *name, size_t *len) {
  static char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  *len = (size_t)ftell(file);
  rewind(file);
  uint8_t *bytes = malloc(*len);
  CHECK(bytes != NULL && fread(bytes, 1, *len, file) == *len);
  fclose(file);
  return bytes;
}

static tpvit_session *make_session(const tpvit_model *model, size_t threads, const char *isa) {
  tpvit_session *session = NULL;
  CHECK(tpvit_session_new(model, threads, isa, &session) == TPVIT_STATUS_OK);
  CHECK(session != NULL);
  return session;
}

static void gives_the_expected_bits(tpvit_session *session) {
  float output[CLASSES + 2];
  memset(output, 0x5a, sizeof output);
  float beyond = output[CLASSES];
  CHECK(tpvit_session_run(session, pixels, PIXELS, output, CLASSES + 2) == TPVIT_STATUS_OK);
  CHECK(memcmp(output, expected, sizeof expected) == 0);
  CHECK(memcmp(output + CLASSES, &beyond, sizeof beyond) == 0);
  CHECK(memcmp(output + CLASSES + 1, &beyond, sizeof beyond) == 0);
}

static void opening(const char *folder, const uint8_t *bytes, size_t len) {
  tpvit_model *const garbage = (tpvit_model *)(uintptr_t)1;
  tpvit_model *model = garbage;
  FAILS(tpvit_model_open(NULL, &model), TPVIT_STATUS_ARGUMENT, "path is NULL");
  CHECK(model == NULL);
  FAILS(tpvit_model_open(model_path, NULL), TPVIT_STATUS_ARGUMENT, "model is NULL");
  model = garbage;
  FAILS(tpvit_model_open("/no/such/file.tpv", &model), TPVIT_STATUS_IO, "/no/such/file.tpv: ");
  CHECK(model == NULL);
  FAILS(tpvit_model_open(folder, &model), TPVIT_STATUS_IO, folder);
  FAILS(tpvit_model_open(__FILE__, &model), TPVIT_STATUS_MODEL, __FILE__);

  FAILS(tpvit_model_from_memory(NULL, 0, &model), TPVIT_STATUS_ARGUMENT, "bytes is NULL");
  FAILS(tpvit_model_from_memory(NULL, len, &model), TPVIT_STATUS_ARGUMENT, "bytes is NULL");
  FAILS(tpvit_model_from_memory(bytes, len, NULL), TPVIT_STATUS_ARGUMENT, "model is NULL");
  FAILS(tpvit_model_from_memory(bytes, SIZE_MAX, &model), TPVIT_STATUS_ARGUMENT, "length");
  FAILS(tpvit_model_from_memory(bytes, 0, &model), TPVIT_STATUS_MODEL, "in memory");
  for (size_t cut = 1; cut < len; cut += 97) {
    model = garbage;
    CHECK(tpvit_model_from_memory(bytes, len - cut, &model) == TPVIT_STATUS_MODEL);
    CHECK(model == NULL);
  }
  /* Any address will do, and the bytes are copied. */
  uint8_t *moved = malloc(len + 1);
  CHECK(moved != NULL);
  memcpy(moved + 1, bytes, len);
  CHECK(tpvit_model_from_memory(moved + 1, len, &model) == TPVIT_STATUS_OK);
  memset(moved, 0, len + 1);
  free(moved);
  tpvit_session *session = make_session(model, 1, NULL);
  gives_the_expected_bits(session);
  tpvit_session_free(session);
  tpvit_model_free(model);
  tpvit_model_free(NULL);

  /* The tensors come last; they are read when there is to be a session. */
  uint8_t *wrong = malloc(len);
  CHECK(wrong != NULL);
  memcpy(wrong, bytes, len);
  wrong[len - 1] ^= 1;
  CHECK(tpvit_model_from_memory(wrong, len, &model) == TPVIT_STATUS_OK);
  session = (tpvit_session *)garbage;
  CHECK(tpvit_session_new(model, 1, NULL, &session) == TPVIT_STATUS_MODEL);
  CHECK(session == NULL);
  tpvit_model_free(model);
  free(wrong);
}

static void questions(const tpvit_model *model) {
  CHECK(tpvit_model_height(model) == SIDE);
  CHECK(tpvit_model_width(model) == SIDE);
  CHECK(tpvit_model_shorter_side(model) == SIDE * 8 / 7);
  CHECK(strcmp(tpvit_model_interpolation(model), "bicubic") == 0);
  CHECK(tpvit_model_output_rows(model) == 1);
  CHECK(tpvit_model_output_cols(model) == CLASSES);
  CHECK(tpvit_model_classes(model) == CLASSES);
  CHECK(strcmp(tpvit_model_label(model, CLASSES - 1), "class 10") == 0);
  CHECK(tpvit_model_label(model, CLASSES) == NULL);
  CHECK(tpvit_model_label(model, SIZE_MAX) == NULL);

  CHECK(tpvit_model_height(NULL) == 0);
  CHECK(tpvit_model_width(NULL) == 0);
  CHECK(tpvit_model_shorter_side(NULL) == 0);
  CHECK(tpvit_model_interpolation(NULL) == NULL);
  CHECK(tpvit_model_output_rows(NULL) == 0);
  CHECK(tpvit_model_output_cols(NULL) == 0);
  CHECK(tpvit_model_classes(NULL) == 0);
  CHECK(tpvit_model_label(NULL, 0) == NULL);
}

static void sessions(const tpvit_model *model) {
#if defined(__aarch64__) || defined(__arm__)
  const char *elsewhere = "avx2";
#else
  const char *elsewhere = "neon";
#endif
  tpvit_session *const garbage = (tpvit_session *)(uintptr_t)1;
  tpvit_session *session = garbage;
  FAILS(tpvit_session_new(NULL, 1, NULL, &session), TPVIT_STATUS_ARGUMENT, "model is NULL");
  CHECK(session == NULL);
  FAILS(tpvit_session_new(model, 1, NULL, NULL), TPVIT_STATUS_ARGUMENT, "session is NULL");
  FAILS(tpvit_session_new(model, 0, NULL, &session), TPVIT_STATUS_ARGUMENT, "not 0");
  FAILS(tpvit_session_new(model, 1025, NULL, &session), TPVIT_STATUS_ARGUMENT, "not 1025");
  FAILS(tpvit_session_new(model, SIZE_MAX, NULL, &session), TPVIT_STATUS_ARGUMENT, "threads");
  FAILS(tpvit_session_new(model, 1, "", &session), TPVIT_STATUS_ARGUMENT, "portable, avx2");
  FAILS(tpvit_session_new(model, 1, "\xff", &session), TPVIT_STATUS_ARGUMENT, "called");
  session = garbage;
  FAILS(tpvit_session_new(model, 1, elsewhere, &session), TPVIT_STATUS_MACHINE, elsewhere);
  CHECK(session == NULL);

  session = make_session(model, 1, "portable");
  CHECK(strcmp(tpvit_session_isa(session), "portable") == 0);
  CHECK(tpvit_session_bytes(session) > 0);
  gives_the_expected_bits(session);
  tpvit_session_free(session);
  for (size_t threads = 1; threads <= 3; threads++) {
    session = make_session(model, threads, NULL);
    gives_the_expected_bits(session);
    tpvit_session_free(session);
  }
  tpvit_session_free(NULL);
  CHECK(tpvit_session_isa(NULL) == NULL);
  CHECK(tpvit_session_bytes(NULL) == 0);
}

static void running(const tpvit_model *model) {
  tpvit_session *session = make_session(model, 1, NULL);
  float output[CLASSES + 1];
  float before[CLASSES + 1];
  memset(output, 0x5a, sizeof output);
  memcpy(before, output, sizeof output);
  FAILS(tpvit_session_run(NULL, pixels, PIXELS, output, CLASSES), TPVIT_STATUS_ARGUMENT,
        "session is NULL");
  FAILS(tpvit_session_run(session, NULL, PIXELS, output, CLASSES), TPVIT_STATUS_ARGUMENT,
        "pixels is NULL");
  FAILS(tpvit_session_run(session, pixels, PIXELS, NULL, CLASSES), TPVIT_STATUS_ARGUMENT,
        "output is NULL");
  FAILS(tpvit_session_run(session, pixels, PIXELS - 1, output, CLASSES), TPVIT_STATUS_LENGTH,
        "3071 bytes");
  FAILS(tpvit_session_run(session, pixels, 0, output, CLASSES), TPVIT_STATUS_LENGTH, "0 bytes");
  FAILS(tpvit_session_run(session, pixels, SIZE_MAX, output, CLASSES), TPVIT_STATUS_ARGUMENT,
        "pixels has length");
  FAILS(tpvit_session_run(session, pixels, PIXELS, output, CLASSES - 1), TPVIT_STATUS_LENGTH,
        "room for 10 floats, the result has 11");
  FAILS(tpvit_session_run(session, pixels, PIXELS, output, 0), TPVIT_STATUS_LENGTH, "room for 0");
  FAILS(tpvit_session_run(session, pixels, PIXELS, (float *)((uintptr_t)output + 1), CLASSES),
        TPVIT_STATUS_ARGUMENT, "no multiple of 4");
  CHECK(memcmp(output, before, sizeof output) == 0);
  gives_the_expected_bits(session);
  tpvit_session_free(session);
}

static void probabilities(void) {
  float logits[CLASSES];
  memcpy(logits, expected, sizeof logits);
  CHECK(tpvit_softmax(logits, CLASSES) == TPVIT_STATUS_OK);
  double sum = 0;
  for (size_t i = 0; i < CLASSES; i++) {
    CHECK(logits[i] > 0 && logits[i] < 1);
    for (size_t j = 0; j < CLASSES; j++) {
      CHECK((expected[i] < expected[j]) <= (logits[i] <= logits[j]));
    }
    sum += logits[i];
  }
  CHECK(sum > 0.99999 && sum < 1.00001); /* eleven roundings of 6e-8 and 2e-7 of each exp */
  FAILS(tpvit_softmax(NULL, 1), TPVIT_STATUS_ARGUMENT, "logits is NULL");
  CHECK(tpvit_softmax(logits, 0) == TPVIT_STATUS_OK);
}

/* The model is freed while the session that came from it runs on. */
static void a_session_outlives_its_model(void) {
  tpvit_model *model = NULL;
  CHECK(tpvit_model_open(model_path, &model) == TPVIT_STATUS_OK);
  tpvit_session *session = make_session(model, 2, NULL);
  tpvit_model_free(model);
  gives_the_expected_bits(session);
  tpvit_session_free(session);
}

static void *in_a_thread(void *shared) {
  const tpvit_model *model = shared;
  CHECK(strcmp(tpvit_last_error(), "") == 0); /* other threads' failures are theirs */
  tpvit_session *session = make_session(model, 1, NULL);
  for (int i = 0; i < RUNS; i++) {
    FAILS(tpvit_session_run(session, pixels, 1, NULL, 0), TPVIT_STATUS_ARGUMENT, "output");
    gives_the_expected_bits(session);
  }
  CHECK(strcmp(tpvit_model_label(model, 3), "class 3") == 0);
  tpvit_session_free(session);
  return NULL;
}

static void threads_share(const tpvit_model *model) {
  pthread_t threads[THREADS];
  for (size_t i = 0; i < THREADS; i++) {
    CHECK(pthread_create(&threads[i], NULL, in_a_thread, (void *)(uintptr_t)model) == 0);
  }
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  CHECK(strcmp(tpvit_last_error(), "") == 0);
  CHECK(strchr(tpvit_version(), '.') != NULL);
  size_t bytes_len, pixels_len, logits_len;
  uint8_t *bytes = read_file(argv[1], "model.tpv", &bytes_len);
  void *picture = read_file(argv[1], "pixels.rgb", &pixels_len);
  void *logits = read_file(argv[1], "logits.f32", &logits_len);
  CHECK(pixels_len == sizeof pixels && logits_len == sizeof expected);
  memcpy(pixels, picture, sizeof pixels);
  memcpy(expected, logits, sizeof expected);
  snprintf(model_path, sizeof model_path, "%s/model.tpv", argv[1]);

  opening(argv[1], bytes, bytes_len);
  tpvit_model *model = NULL;
  CHECK(tpvit_model_open(model_path, &model) == TPVIT_STATUS_OK);
  questions(model);
  sessions(model);
  running(model);
  probabilities();
  threads_share(model);
  tpvit_model_free(model);
  a_session_outlives_its_model();

  free(bytes);
  free(picture);
  free(logits);
  printf("contract: %d checks passed\n", checks);
  return 0;
}

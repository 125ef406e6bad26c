/*
 * Classifies a picture: height * width * 3 bytes of RGB in a file, as
 * preprocessing leaves them, or a gradient if there is no such file.
 *
 *     cargo build --release -p tpvit-c
 *     cc example.c -I. -L../../target/release -ltpvit -o example
 *     LD_LIBRARY_PATH=../../target/release ./example vit.tpv [picture.rgb]
 */
#include <stdio.h>
#include <stdlib.h>

#include "tpvit.h"

enum { TOP = 3 };

static int failed(void) {
  fprintf(stderr, "example: %s\n", tpvit_last_error());
  return 1;
}

/* Fills `pixels` with all of the file at `path`. */
static int read_picture(const char *path, uint8_t *pixels, size_t len) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return 1;
  }
  int whole = fread(pixels, 1, len, file) == len && fgetc(file) == EOF;
  fclose(file);
  if (!whole) fprintf(stderr, "example: %s is not %zu bytes\n", path, len);
  return !whole;
}

/* Black to white from left to right, and more red from top to bottom. */
static void draw_gradient(uint8_t *pixels, size_t height, size_t width) {
  for (size_t y = 0; y < height; y++) {
    for (size_t x = 0; x < width; x++) {
      uint8_t *pixel = pixels + (y * width + x) * 3;
      pixel[1] = pixel[2] = (uint8_t)(x * 255 / width);
      pixel[0] = (uint8_t)((x * 255 / width + y * 255 / height) / 2);
    }
  }
}

/* Prints the classes with the highest probabilities, which it sets to zero. */
static void print_top(const tpvit_model *model, float *probabilities, size_t classes) {
  for (size_t rank = 0; rank < TOP && rank < classes; rank++) {
    size_t best = 0;
    for (size_t i = 1; i < classes; i++) {
      if (probabilities[i] > probabilities[best]) best = i;
    }
    const char *label = tpvit_model_label(model, best);
    printf("%5.1f %%  %zu %s\n", 100.0 * probabilities[best], best, label ? label : "");
    probabilities[best] = 0;
  }
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: %s MODEL.tpv [PICTURE.rgb]\n", argv[0]);
    return 2;
  }
  int status = 1;
  tpvit_model *model = NULL;
  tpvit_session *session = NULL;
  uint8_t *pixels = NULL;
  float *output = NULL;

  if (tpvit_model_open(argv[1], &model) != TPVIT_STATUS_OK ||
      tpvit_session_new(model, 1, NULL, &session) != TPVIT_STATUS_OK) {
    status = failed();
    goto end;
  }
  size_t height = tpvit_model_height(model);
  size_t width = tpvit_model_width(model);
  size_t classes = tpvit_model_classes(model);
  if (classes == 0) {
    fprintf(stderr, "example: %s gives features, no classes\n", argv[1]);
    goto end;
  }
  size_t pixels_len = height * width * 3;
  pixels = malloc(pixels_len);
  output = malloc(classes * sizeof *output);
  if (pixels == NULL || output == NULL) {
    fprintf(stderr, "example: out of memory\n");
    goto end;
  }
  if (argc == 3) {
    if (read_picture(argv[2], pixels, pixels_len)) goto end;
  } else {
    draw_gradient(pixels, height, width);
  }
  if (tpvit_session_run(session, pixels, pixels_len, output, classes) != TPVIT_STATUS_OK ||
      tpvit_softmax(output, classes) != TPVIT_STATUS_OK) {
    status = failed();
    goto end;
  }
  printf("tpvit %s, %s, %zu x %zu pixels, %zu classes\n", tpvit_version(),
         tpvit_session_isa(session), height, width, classes);
  print_top(model, output, classes);
  status = 0;

end:
  free(output);
  free(pixels);
  tpvit_session_free(session);
  tpvit_model_free(model);
  return status;
}

/* The C interface from C99: client ARTIFACT FRAMES OUTPUT PERIOD REPEAT. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "resq.h"

#define EXPECT(condition)                                          \
  do {                                                             \
    if (!(condition)) {                                            \
      fprintf(stderr, "%d: %s (%s)\n", __LINE__, #condition, resq_last_error()); \
      return 1;                                                    \
    }                                                              \
  } while (0)

static int refusals(const resq_artifact* artifact, resq_session* session) {
  resq_artifact* none = NULL;
  resq_session* no_session = NULL;
  resq_tensor_info info;
  resq_options options = {0};
  const float* values = NULL;
  const float* nothing[1] = {NULL};

  EXPECT(resq_artifact_load("/nowhere.resq", &none) == RESQ_ARTIFACT_ERROR);
  EXPECT(none == NULL && strstr(resq_last_error(), "does not exist") != NULL);
  EXPECT(resq_artifact_load(NULL, &none) == RESQ_CONFIG_ERROR);
  EXPECT(strcmp(resq_last_error(), "path is NULL") == 0);
  EXPECT(resq_input_info(artifact, 7, &info) == RESQ_CONFIG_ERROR);
  options.threads = 100000;
  EXPECT(resq_session_new(artifact, &options, &no_session) == RESQ_CONFIG_ERROR);
  EXPECT(no_session == NULL && strstr(resq_last_error(), "threads 100000") != NULL);
  options.threads = 0;
  options.adaptive = 1;
  options.min_distance = 3;
  options.max_distance = 2;
  EXPECT(resq_session_new(artifact, &options, &no_session) == RESQ_CONFIG_ERROR);
  EXPECT(strstr(resq_last_error(), "max distance 2 is below min distance 3") != NULL);
  EXPECT(resq_session_output(session, 0, &values) == RESQ_CONFIG_ERROR); /* no frame yet */
  EXPECT(resq_session_run(session, nothing, 1) == RESQ_FRAME_ERROR);
  EXPECT(resq_session_run(session, nothing, 0) == RESQ_FRAME_ERROR);
  EXPECT(resq_session_run(NULL, nothing, 1) == RESQ_CONFIG_ERROR);
  resq_artifact_free(NULL);
  resq_session_free(NULL);
  return 0;
}

int main(int count, char** words) {
  resq_artifact* artifact = NULL;
  resq_session* session = NULL;
  resq_options options = {0};
  resq_tensor_info input, output;
  resq_frame_info last;
  const float* values;
  FILE *frames, *results;
  float* frame;
  double share;

  if (count != 6) return 2;
  share = atof(words[5]);
  options.period = atoi(words[4]);
  options.threads = 1;
  options.no_guard = 1;
  options.repeat = strcmp(words[5], "-") == 0 ? NULL : &share;
  EXPECT(resq_artifact_load(words[1], &artifact) == RESQ_OK);
  EXPECT(resq_input_count(artifact) == 1 && resq_output_count(artifact) == 1);
  EXPECT(resq_input_info(artifact, 0, &input) == RESQ_OK);
  EXPECT(resq_output_info(artifact, 0, &output) == RESQ_OK);
  EXPECT(input.dimensions == 4 && input.shape[0] == 1);
  EXPECT(resq_session_new(artifact, &options, &session) == RESQ_OK);
  if (refusals(artifact, session) != 0) return 1;
  resq_artifact_free(artifact); /* the session keeps what it needs */

  frames = fopen(words[2], "rb");
  results = fopen(words[3], "wb");
  frame = malloc(input.size * sizeof(float));
  EXPECT(frames != NULL && results != NULL && frame != NULL);
  while (fread(frame, sizeof(float), input.size, frames) == input.size) {
    const float* inputs[1];
    inputs[0] = frame;
    EXPECT(resq_session_run(session, inputs, 1) == RESQ_OK);
    EXPECT(resq_session_output(session, 0, &values) == RESQ_OK);
    EXPECT(fwrite(values, sizeof(float), output.size, results) == output.size);
    EXPECT(resq_session_last(session, &last) == RESQ_OK && last.ms >= 0);
    printf("%s %s %ld %.17g\n", last.kind, last.reason, (long)last.index, last.changed);
  }
  EXPECT(resq_session_reset(session) == RESQ_OK);
  EXPECT(resq_session_output(session, 0, &values) == RESQ_CONFIG_ERROR);
  resq_session_free(session);
  free(frame);
  fclose(frames);
  return fclose(results);
}

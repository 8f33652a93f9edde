/* A capture card that gives H.264, for programs that load this library first (LD_PRELOAD): /dev/video90 by V4L2.
 *
 * Its pictures are those of the file that CARD_PICTURES names: each has its size before it, in 4 bytes. They come 25
 * times per second, and then the card is gone for good. CARD_FOLDER is listed in place of the folder /dev. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BUFFERS 4
#define SIZE (1 << 20)
static const char *NAME = "/dev/video90";
static int card = -1, gone, waiting[BUFFERS], first, count;
static FILE *pictures;
static unsigned char *memory;

static int open_card(void) {
    if (gone) {
        errno = ENODEV;
        return -1;
    }
    card = memfd_create("card", 0);
    if (ftruncate(card, BUFFERS * SIZE)) return -1;
    memory = mmap(NULL, BUFFERS * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, card, 0);
    pictures = fopen(getenv("CARD_PICTURES"), "rb");
    first = count = 0;
    return card;
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    if (!strcmp(path, NAME)) return open_card();
    return ((int (*)(const char *, int, int))dlsym(RTLD_NEXT, "open"))(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

DIR *opendir(const char *path) {
    return ((DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir"))(strcmp(path, "/dev") ? path : getenv("CARD_FOLDER"));
}

static void set_format(struct v4l2_format *format) {
    format->fmt.pix = (struct v4l2_pix_format){
        .width = 320, .height = 240, .pixelformat = V4L2_PIX_FMT_H264, .field = V4L2_FIELD_NONE, .sizeimage = SIZE};
}

static int take_picture(struct v4l2_buffer *buffer) {
    struct timespec pause = {0, 40000000}, now;
    unsigned size;
    nanosleep(&pause, NULL);
    gone = !count || !fread(&size, sizeof size, 1, pictures);
    if (gone) return ENODEV;
    buffer->index = waiting[first++ % BUFFERS], count--;
    buffer->bytesused = fread(memory + buffer->index * SIZE, 1, size, pictures);
    clock_gettime(CLOCK_MONOTONIC, &now);
    buffer->timestamp = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
    return 0;
}

static int answer(unsigned long request, void *told) {
    struct v4l2_capability *capability = told;
    struct v4l2_fmtdesc *description = told;
    struct v4l2_frmsizeenum *frame_size = told;
    struct v4l2_streamparm *parameters = told;
    struct v4l2_buffer *buffer = told;
    switch (request) {
    case VIDIOC_QUERYCAP:
        memset(capability, 0, sizeof *capability);
        strcpy((char *)capability->card, "H.264 card");
        capability->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_ENUM_FMT:
        if (description->index) return EINVAL;
        description->pixelformat = V4L2_PIX_FMT_H264, description->flags = V4L2_FMT_FLAG_COMPRESSED;
        strcpy((char *)description->description, "H.264");
        return 0;
    case VIDIOC_ENUM_FRAMESIZES:
        if (frame_size->index) return EINVAL;
        frame_size->type = V4L2_FRMSIZE_TYPE_DISCRETE;
        frame_size->discrete = (struct v4l2_frmsize_discrete){320, 240};
        return 0;
    case VIDIOC_G_INPUT:
        *(int *)told = 0;
        return 0;
    case VIDIOC_ENUMINPUT:
        memset(told, 0, sizeof(struct v4l2_input));
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
        set_format(told);
        return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM:
        parameters->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        parameters->parm.capture.timeperframe = (struct v4l2_fract){1, 25};
        return 0;
    case VIDIOC_REQBUFS:
        ((struct v4l2_requestbuffers *)told)->count = BUFFERS;
        return 0;
    case VIDIOC_QUERYBUF:
        buffer->length = SIZE, buffer->m.offset = buffer->index * SIZE;
        return 0;
    case VIDIOC_QBUF:
        waiting[(first + count++) % BUFFERS] = buffer->index;
        return 0;
    case VIDIOC_DQBUF:
        return take_picture(buffer);
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
        return 0;
    }
    return ENOTTY;
}

int ioctl(int file, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *told = va_arg(more, void *);
    va_end(more);
    if (card < 0 || file != card)
        return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(file, request, told);
    errno = answer((unsigned)request, told);
    return errno ? -1 : 0;
}

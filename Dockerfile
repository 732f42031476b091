# overlayd in a container: the unpacked build, run as a user without rights, one volume for the log.
#   docker build -t overlayd .
#   docker run -v overlayd:/var/lib/overlayd overlayd
# The node listens on the container's own loopback, which a published port (-p) doesn't reach: see the end.
FROM debian:12 AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates git make binutils python3 python3-venv libpython3.11
WORKDIR /src
COPY . .
RUN make binary

FROM debian:12-slim
RUN useradd --system --home-dir /var/lib/overlayd --shell /usr/sbin/nologin --uid 7878 overlayd \
 && install -d -o overlayd -g overlayd -m 0750 /var/lib/overlayd
COPY --from=build /src/build/package/tree /usr/lib/overlayd
RUN ln -s ../lib/overlayd/overlayd /usr/bin/overlayd
USER overlayd
VOLUME /var/lib/overlayd
EXPOSE 7878
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["overlayd", "node", "--data", "/var/lib/overlayd"]
# Without keys the node serves local clients only. Make keys first, or mount a configuration; then publish the port, with
# "run --data /var/lib/overlayd --listen 0.0.0.0:7878" for the command.
ENTRYPOINT ["overlayd"]
CMD ["run", "--data", "/var/lib/overlayd", "--listen", "127.0.0.1:7878"]

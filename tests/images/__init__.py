"""`make images`: build the container images, run them as the compose file says, and try them.

Needs root and `buildah`, `debootstrap` and `ip`; no container engine and no image registry.

- `compose`: the compose files, as values
- `builder`: base images and the images of the Dockerfiles
- `network`: a network namespace for each service
- `container`: a running service
- `trial`: the checks of the running services
"""

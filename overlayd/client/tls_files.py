"""Files for https and wss: whom the client believes, and the certificate that it shows."""

import ssl

import msgspec

from overlayd.model.errors import BadParameter


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files. `cafile`: authorities that are believed instead of the system's. `certfile`, with its `keyfile` if that
    is another one: the client's own certificate, for nodes that know clients by it."""

    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""

    def context(self) -> ssl.SSLContext | None:
        """None when there is nothing to say. Blocking, shortly. Raises BadParameter for files that can't be used."""
        if not (self.cafile or self.certfile or self.keyfile):
            return None
        if self.keyfile and not self.certfile:
            raise BadParameter(
                "a key without its certificate", subject="keyfile", hint="give the certificate's file, too"
            )
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
        except (OSError, ssl.SSLError) as err:
            raise BadParameter(f"{self.cafile} can't be used: {_words_of(err)}", subject="cafile") from err
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certfile:
            try:
                context.load_cert_chain(self.certfile, self.keyfile or None, password=_refuse_passphrase)
            except (OSError, ssl.SSLError) as err:
                files = " with ".join(filter(None, (self.certfile, self.keyfile)))
                raise BadParameter(f"{files} can't be used: {_words_of(err)}", subject="certfile") from err
        return context


def chosen_context(tls: TlsFiles | None, ssl_context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The context itself if there is one, else that of the files. Raises BadParameter."""
    return ssl_context if ssl_context is not None or tls is None else tls.context()


def _words_of(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file with what is needed").lower().replace("_", " ")
    return error.strerror or str(error)


def _refuse_passphrase() -> str:
    raise BadParameter("the key has a passphrase; give a context of your own as ssl_context", subject="keyfile")

"""The suite's own JOSE: signing keys, and tokens minted from *recipes*, sound or broken on purpose.

It shares no code with any agent. A recipe is a plain table, as scenario files write it; an unknown key is an
error, so a misspelt attack never turns into a valid token. Without any key a recipe is a valid token.

================  ====================================================================================
Claims
================  ====================================================================================
``shape``         where roles and the rest live: ``generic`` (default), ``rfc9068``, ``okta``, ``cognito``
                  (access token), ``cognito-id``, ``entra``, ``keycloak``, ``github``, ``aws``
``base``          ``valid`` (default: iss, aud, sub, iat, nbf, exp, jti) or ``empty``
``roles``         a list; a bare word becomes ``arn:aws:iam::<account>:role/<word>``, anything with ``:``
                  or ``/`` is kept; ``preferred_role`` likewise, one
``account`` (``111111111111``), ``sub`` (``alice``), ``aud`` (``edge``), ``iss``, ``scope``
``exp`` ``nbf``   a duration string is relative to now (``"-120s"``, ``"+5m"``, ``"1.5h"``); a number is taken
``iat`` ...       as it is; also ``auth_time``; any other string is an error (use ``raw``)
``claims``        claims set or replaced, verbatim JSON values, but that a whole string ``{now+60}`` becomes
                  epoch seconds and ``{iso+60}`` an instant
``merge``         likewise, but merged into nested tables
``drop``          names of claims to leave out, last of all; a list in the list is a path
``raw``           claim name to raw JSON text: ``{exp = "1e400"}``; ``{now}``, ``{now+300}`` are replaced,
                  and ``{9 lists}``, ``{9 objects}`` by so many empty ones with commas between
``duplicate``     claim name to the list of values it has in turn: ``{exp = ["-60s", "+5m"]}``
``depth``         one more claim, a list nested so deep
``size``          pads the token with a claim, and if need be the header, to just so many bytes
================  ====================================================================================

====================  ================================================================================
Header and key
====================  ================================================================================
``key``               a kid or an algorithm among the issuer's keys (default: the first that fits ``alg``);
                      ``other`` (fresh key under the published kid), ``unknown-kid`` (fresh key, fresh
                      kid), ``wrong-kid`` (a good key under the kid of another one)
``alg``               signs with it where the key can (RS256 key, PS512), else only the header says so;
                      ``none`` in any case has an empty signature
``kid``, ``typ``      header members; ``header`` sets any others, verbatim; ``drop_header`` leaves out
``raw_header_member``, ``duplicate_header``   as ``raw`` and ``duplicate``, for the header
``header_depth``      as ``depth``, in the header
``embed``             puts the signer's public key in the header: ``jwk``, ``x5c``, ``x5t`` (list or word)
``confusion``         an HMAC keyed with public material: ``hs256-with-public-key`` (PEM), also ``-with-``
                      ``public-der``, ``public-jwk``, ``certificate``, ``kid``, ``empty-key``; hs384, hs512
``unencoded``         true: RFC 7797, ``b64: false``, ``crit: ["b64"]``, the payload unencoded
``deflate``           true: ``zip: DEF`` and a payload that really is deflated
``nested``            true: ``cty: JWT`` around the sound token
====================  ================================================================================

=================  ===================================================================================
Bytes
=================  ===================================================================================
``raw_payload``    the payload's text instead of claims; ``raw_header`` the header's; signed as they are
``signature``      ``truncated``, ``short``, ``long``, ``empty``, ``zero`` (ECDSA r = s = 0), ``order``
                   (r = s = n), ``der``, ``flipped`` (one bit), ``foreign`` (of another payload),
                   ``negated`` (n - s), or ``text:<verbatim segment>``
``encoding``       a word for the payload or a table by segment (header, payload, signature):
                   ``padded``, ``whitespace``, ``standard`` (``+/``), ``noncanonical`` (stray last bits),
                   and for header and payload ``utf16``, ``utf32``, ``bom``, ``invalid-utf8``,
                   ``surrogate``, ``nul``, ``line-tab``, ``trailing`` (bytes after the object), ``array``
``segments``       how many dot-separated parts the token shows: 1, 2, 4, 5
``jwe``            true: a real five-part JWE (RSA-OAEP-256, A256GCM) of the claims
``prefix``, ``suffix``   text around the token; ``text`` the whole token, verbatim
=================  ===================================================================================

``issuer`` and ``signer`` name issuers (``signer``: whose keys sign, default the issuer): `mint_for` resolves
them; `mint` ignores them. ``iss`` and strings in ``header`` may hold ``{issuer}``, the issuer's URL, and with
`mint_for` ``{url:evil}``, the URL of the issuer named evil.
"""

from iamroles_scenarios.base.errors import RecipeError
from iamroles_scenarios.jose.keys import ALGORITHMS, SigningKey
from iamroles_scenarios.jose.recipe import Signer, mint, mint_for
from iamroles_scenarios.jose.shapes import DEFAULT_ACCOUNT, DEFAULT_AUDIENCE, SHAPES, role_arn

__all__ = [
    "ALGORITHMS",
    "DEFAULT_ACCOUNT",
    "DEFAULT_AUDIENCE",
    "SHAPES",
    "RecipeError",
    "Signer",
    "SigningKey",
    "mint",
    "mint_for",
    "role_arn",
]
